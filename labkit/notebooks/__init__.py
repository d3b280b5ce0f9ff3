"""From `notebooks/source/*.py` to the executed notebooks that a learner opens.

Projects are notebooks too (`source/projects/p2_*.py`), without numbered exercises.

    source.py     percent-format text to notebook cells, and whether an .ipynb is in step with it
    running.py    execute a notebook as a fresh learner would, in this Python
    cleaning.py   keep what a reader needs; the same run twice gives the same file
    build.py      source, run, clean, write
    lint.py       the rules of a notebook: rules_text, rules_code, rules_outputs
    solving.py    the same notebooks with every exercise solved
    comparing.py  nbval: run the committed notebooks again and compare every output

`python -m labkit.notebooks build|lint|solve|check [02 ...]` runs them.
"""
