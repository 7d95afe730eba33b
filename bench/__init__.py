"""What a person runs to measure Sluice: each module here is a bench, `python -m bench.NAME --help`.

`bench/support` has what the benches share and what they compare with; nobody runs that by itself.
"""
