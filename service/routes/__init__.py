"""One short file per resource; what the handlers share is in service.guard."""
