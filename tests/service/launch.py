"""Starts the service for a test: `python launch.py '{"settings": {...}, "limits": {...}}'`."""

import json
import sys

from service.app import serve
from service.settings import Limits, Settings

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(Settings(**given["settings"], limits=Limits(**given["limits"])))
