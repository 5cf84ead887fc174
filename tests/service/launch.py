"""Starts the service for a test: `python launch.py '{"settings": {...}, "limits": {...}}'`."""

import json
import sys
from pathlib import Path

from service.app import serve
from service.settings import Limits, Settings

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    for name in {"admin_key_file", "database_password_file", "data_dir"} & given["settings"].keys():
        given["settings"][name] = Path(given["settings"][name])
    serve(Settings(**given["settings"], limits=Limits(**given["limits"])))
