"""Messages between master, brokers and executors: types, codec, version. Pure: no I/O here."""
