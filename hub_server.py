"""Runs a hub from the command line: `python hub_server.py --data lab-data --port 8443` (also `fedlab hub`)."""

import sys

from fedlab.__main__ import main

if __name__ == "__main__":
    main(["hub", *sys.argv[1:]])
