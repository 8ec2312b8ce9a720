# Each target sets up what it needs and leaves nothing running.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench image dist audit clean

help: ## shows this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## shows it at work: a real Celery producer, values of many types, errors, a chain, a metric event
	@demo/run

test: ## runs every suite: format, lints, unit and live tests, docs, real Celery end to end
	@tests/run

check: ## format, lints and docs only; needs no broker
	@tests/run check

docs: ## builds the book into target/book and prints the path of its first page
	@deploy/need python && python=$$(tests/e2e/venv) && "$$python" docs/build

bench: ## measures commands/s, latency, CPU and memory beside Celery's own workers
	@deploy/need rust broker redis processes && python=$$(deploy/need --python) && "$$python" benches/run

image: ## builds the container image from source; FILESTORAGE_IMAGE names it, RUST_IMAGE and RUNTIME_IMAGE its bases
	@deploy/image/build

audit: ## checks dependencies against deny.toml and the advisory database; needs cargo-deny and a network
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing; run: cargo install cargo-deny"; exit 69; }
	cargo deny check

dist: ## builds what is handed out, into target/dist: program, units, documents, SBOM, checksums
	@deploy/dist

clean: ## stops the development servers and removes everything that was built
	@for server in dev-broker dev-gcs dev-redis dev-s3; do deploy/$$server stop; done
	@deploy/stop-servers
	cargo clean
