"""What a task costs here: the questions of `dagsched bench`, which `benchmarks/` asks at length."""
