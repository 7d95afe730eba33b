"""What a person runs to measure Sluice: each module is a bench, `python -m bench.NAME --help`.

Here are those that run Sluice's parts together; `bench/retrieval` measures parts of retrieval
alone, and `bench/code` the code itself. `bench/support` has what the benches share and what they
compare with; nobody runs that by itself.
"""
