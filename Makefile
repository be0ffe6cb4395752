# The two commands: `make demo` shows the whole thing, `make test` proves it. Both install what they
# need: a virtual environment in .venv and a few Debian packages. Test hosts need root.

SHELL := /bin/bash
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# The longest first, so that the last ones end at about the same time.
SCENARIOS := security status monitoring changes preflight chaos default outage neighbours resilience senders fuzz
# Of chaos: for how many seconds (each disaster comes at least once), and which mail in which order.
export MX_CHAOS_SECONDS := $(or $(DURATION),0)
export MX_CHAOS_SEED := $(or $(SEED),1)
# Of fuzz: the same (there is a least number of sessions), or a single session to see again.
export MX_FUZZ_SECONDS := $(or $(DURATION),0)
export MX_FUZZ_SEED := $(or $(SEED),1)
export MX_FUZZ_SESSION := $(SESSION)
# For the test hosts, and for building Python's virtual environments.
DEBIAN_PACKAGES := mmdebstrap debian-archive-keyring systemd-container iproute2 nftables openssh-client openssl pebble python3-venv testssl.sh

# How long a target took, for the table at the end of `make test`.
TIMES := .times
begin = @mkdir -p $(TIMES) && date +%s > $(TIMES)/$@
took = @printf '%6s s  %s\n' $$(( $$(date +%s) - $$(cat $(TIMES)/$@) )) $@ >> $(TIMES)/table

.PHONY: help demo demo-down test lint unit molecule $(SCENARIOS) fuzz-mail bench bench-validator docs setup clean \
    host provision try login down

help:
	@echo 'make demo        build a bare Debian 13 host, make it an MX, and show mail arriving'
	@echo 'make demo-down   remove every trace of it'
	@echo 'make test        lint, unit tests and all scenarios on Debian 12 and 13'
	@echo 'make lint, make unit, make molecule, make default ...   parts of it'
	@echo 'make host HOST=mx-trixie             make a provisioned test host (or mx-bookworm), and keep it'
	@echo 'make try HOST=mx-trixie K=smuggling  run the tests whose names match against it'
	@echo 'make provision HOST=mx-trixie        run the playbook against it again'
	@echo 'make login HOST=mx-trixie            open a shell on it'
	@echo 'make down        remove all test hosts of this checkout'
	@echo 'make chaos DURATION=3600 SEED=7   one disaster after another for an hour; nothing is lost'
	@echo 'make fuzz-mail DURATION=600 SEED=7   SMTP sessions made at random; what got a 250 is in the mailbox'
	@echo 'make fuzz-mail SEED=7 SESSION=123    one of them again, as a dialogue'
	@echo 'make bench       how fast the MX is, next to its limits, and how much it needs'
	@echo 'make bench-validator   how fast the validator is, next to the limit; then a million spoilt requests'
	@echo 'make docs        write anew what is generated: tables of variables, Prometheus rules, dashboard'

demo: setup
	python molecule/shared/demo.py up

demo-down:
	python3 molecule/shared/demo.py down

# Three at a time: much of a scenario is waiting. What a target prints comes when it has ended.
test: setup
	@rm -rf $(TIMES)
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target lint unit molecule; status=$$?; \
	    echo 'What took how long:'; sort --numeric-sort --reverse $(TIMES)/table; exit $$status

lint: $(VENV)/installed
	$(begin)
	yamllint .
	@# A scenario imports the playbook from the collection.
	ansible-galaxy collection install --force -p .ansible/collections . >/dev/null
	ANSIBLE_COLLECTIONS_PATH=.ansible/collections ansible-lint
	ansible-playbook --inventory inventory.example --syntax-check site.yml
	@# S3 would indent nested statements, and with them the file that is written.
	j2lint --ignore S3 -- roles molecule
	ruff check .
	ruff format --check .
	mypy
	cd files/validator && mypy
	cd files/oempro-mx && mypy
	cd files/oempro-mx-check && mypy
	shellcheck .ci/run roles/preflight/files/host.sh roles/postfix/files/check-postfix-file roles/tls/files/* roles/code/files/install-code
	codespell --skip .git,$(VENV),.ansible --ignore-words-list anull,bu,iif,levl,succes
	python docs/arguments.py --check
	python files/monitoring/generate.py --check
	$(took)

unit: $(VENV)/installed
	$(begin)
	cd files/validator && python -m pytest --cov --cov-fail-under=95 --quiet
	cd files/oempro-mx && python -m pytest --quiet
	cd files/oempro-mx-check && python -m pytest --quiet
	cd files/monitoring && python -m pytest --quiet
	$(took)

molecule: $(SCENARIOS)

# Each has a network and hosts of its own.
$(SCENARIOS): setup
	$(begin)
	MX_LAB=$@ molecule test --scenario-name $@
	$(took)

fuzz-mail: fuzz

host: setup
	ansible-playbook --inventory molecule/inventory --limit $(HOST),localhost molecule/shared/copy.yml

provision: setup
	ansible-playbook --inventory molecule/inventory --limit $(HOST) site.yml

try: setup
	python -m pytest --ansible-inventory=molecule/inventory --hosts='ansible://$(HOST)?sudo=true' -k '$(K)' \
	    $(filter-out molecule/preflight/tests,$(wildcard molecule/*/tests))

login:
	python3 molecule/shared/testhost.py login $(HOST)

down:
	python3 molecule/shared/testhost.py down

bench: setup
	python molecule/benchmark/bench.py --json benchmark.json

bench-validator: $(VENV)/installed
	cd files/validator && python benchmark/bench.py && python benchmark/fuzz.py

docs: $(VENV)/installed
	python docs/arguments.py
	python files/monitoring/generate.py

setup: $(VENV)/installed
	@if missing=$$(dpkg-query --show --showformat='$${db:Status-Status} $${Package}\n' $(DEBIAN_PACKAGES) 2>&1 \
	    | grep -v '^installed '); then \
	    echo "Installing Debian packages: $(DEBIAN_PACKAGES)"; \
	    apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive \
	        apt-get install --quiet=2 --yes --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; \
	fi

$(VENV)/installed: requirements.txt
	@python3 -c 'import ensurepip' 2>/dev/null || { echo 'Installing python3-venv'; \
	    apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends python3-venv >/dev/null; }
	@echo 'Making the virtual environment in $(VENV)'
	@python3 -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(TIMES) .mypy_cache .ruff_cache .pytest_cache
