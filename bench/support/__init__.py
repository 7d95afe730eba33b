"""What benches use: a stack, a corpus, random models, and what Sluice is compared with.

`bare` and `plain_*` are what people write without Sluice; `generate_sides` has the ways of
generating, each behind the same call.
"""
