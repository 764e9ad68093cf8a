"""How bytes from elsewhere become a checked file under its final name.

`web` asks, `ranges` and `stream` receive, `part` holds what is not whole yet, `digest` hashes
along, `verify` judges, `publish` names, `receipts` remember. `bootstrap.download` is the door.
"""
