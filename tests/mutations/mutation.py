"""What a mutation is: one fault that a person could make, and the test files that must notice it."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str                # unique; says what is wrong
    kind: str                # such as "wrong sign"
    file: str                # of the product, from the root of the checkout
    old: str                 # occurs in it exactly once ...
    new: str                 # ... and is replaced by this
    tests: tuple[str, ...]   # files of tests, from the root; the likeliest to notice comes first
    k: str = ""              # pytest's -k, where those files are slow as a whole
