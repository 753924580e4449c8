"""Installed as ``dagsched.brokers``; the bare name belongs to users' own modules."""

if __name__ == "brokers":
    raise ImportError("import dagsched.brokers: the top-level name 'brokers' is not ours to take")
