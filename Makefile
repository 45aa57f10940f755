# Every verb makes the environment (.venv) first when it is missing.
SHELL := bash
RUN := source launch/environment.sh &&

.PHONY: setup demo test lint types ci bench mutants properties fuzz parity elastic clean
setup:    ; @$(RUN) python --version
demo:     ; @launch/demo.sh
test:     ; @launch/test.sh
lint:     ; @$(RUN) ruff check .
types:    ; @$(RUN) mypy
ci:       ; @bash .ci/run
bench:    ; @$(RUN) for script in benchmarks/*.py; do python "$$script" || exit 1; done
parity:   ; @$(RUN) python tests/distributed/parity_matrix.py && python tests/distributed/checkpoint_matrix.py
properties: ; @$(RUN) MQ3_EXAMPLES=2000 python -m pytest -q tests/unit/data/test_stream.py
elastic:  ; @$(RUN) MQ3_ELASTIC_STEPS=200 python -m pytest -q -s tests/faults/test_elastic.py
mutants:  ; @$(RUN) python tests/mutants.py
fuzz:     ; @$(RUN) python -m tests.faults.fuzz
clean:    # .venv and runs stay
	rm -rf build dist data_recipes/built .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
