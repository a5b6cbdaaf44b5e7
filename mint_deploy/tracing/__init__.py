"""Channel provenance: run a network once on labels and see which slices must leave together.

numbers.py   whole numbers that remember where they came from (an attribute, a shape)
labels.py    a label for every element of every activation; views alias, writes write
ledger.py    nodes (one per index of each parameter dimension), unions, freezes
rules.py     what each ATen operator does to labels
literals.py  what Python-level numbers (split sizes, slices, views, pads) demand
tracer.py    the two modes that watch the forward pass
"""
