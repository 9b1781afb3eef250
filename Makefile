# make demo      see it work: a real Mutagen through a real server, on this machine
#                (PROGRAM=/usr/bin/tstunnel: the installed one, nothing is built)
# make recording the same, recorded: docs/demo.svg
# make test      everything that must hold, from formatting to the real Mutagen
# make fuzz      every fuzz target for FUZZ_SECONDS (5)
# make pages     what is written from the tables of commands, options and codes: in man/tstunnel.1, README.md and
#                packaging/completions
# make bench     how it compares with OpenSSH and others here: on the terminal, in FIGURES.md and FIGURES.svg
#                (BENCH_ONLY=start,path: these parts alone; what else there is stands in benches/peers/main.rs)
# make bench-quick   the main ratios, in two minutes
# make deb rpm   packages, in target/packages
# make test-packages
#                what must hold of those: they are installed, upgraded and removed in machines of their own (needs root)
# make build     the program: target/release/tstunnel
# make install   below PREFIX (default /usr/local; DESTDIR is honoured)
# make audit     known vulnerabilities in the dependencies (needs the network)

PREFIX ?= /usr/local
CARGO ?= cargo
FUZZ_SECONDS ?= 5
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where the tests build it too.
MUTAGEN := $(TARGET)/mutagen-v0.18.1
SCRIPTS := .ci/run fuzz/run.sh packaging/build.sh packaging/completions/tstunnel.bash packaging/demo.sh packaging/check-units.sh \
	packaging/record.sh packaging/deb/p* packaging/rpm/[ps]* tests/setup.sh tests/mutagen/build.sh tests/packages/boot.sh \
	tests/packages/run.sh benches/setup.sh

.PHONY: build demo recording deb rpm test-packages test fuzz pages budgets bench bench-quick lint audit setup setup-packages mutagen \
	install clean

build:
	$(CARGO) build --locked --release

demo: setup mutagen $(if $(PROGRAM),,build)
	packaging/demo.sh $(or $(PROGRAM),$(TARGET)/release/tstunnel) $(MUTAGEN)

recording: setup mutagen build
	packaging/record.sh docs/demo.svg packaging/demo.sh $(TARGET)/release/tstunnel $(MUTAGEN)

test: setup lint mutagen
	$(CARGO) test --locked --no-fail-fast
	fuzz/run.sh $(FUZZ_SECONDS)

deb rpm: build setup-packages
	packaging/build.sh $@

test-packages: deb rpm mutagen
	tests/packages/run.sh $(MUTAGEN)

fuzz: setup
	fuzz/run.sh $(FUZZ_SECONDS)

pages:
	TSTUNNEL_WRITE_PAGES=1 $(CARGO) test --locked --test pages -- what_the_table_says

budgets: setup
	TSTUNNEL_WRITE_BUDGETS=1 $(CARGO) test --locked --test budgets -- budgets

bench: setup mutagen
	benches/setup.sh $(TARGET)
	$(CARGO) bench --locked --bench peers

bench-quick: export BENCH_QUICK = 1
bench-quick: bench

# The advisories are not checked here: their database comes from the network, and a test must not depend on that.
lint: setup
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps
	$(CARGO) deny --locked check bans licenses sources
	! mandoc -T lint man/* 2>/dev/null | grep -v 'referenced manual not found'
	shellcheck --external-sources $(SCRIPTS)
	packaging/check-units.sh

audit: setup
	$(CARGO) deny --locked check advisories

setup:
	tests/setup.sh

setup-packages:
	tests/setup.sh packages

mutagen: setup
	tests/mutagen/build.sh $(MUTAGEN)

# Mutagen looks for `ssh` and `scp` in a folder, so there is one with these two names and nothing else.
install: build
	install -D -m 0755 $(TARGET)/release/tstunnel $(DESTDIR)$(PREFIX)/bin/tstunnel
	for page in man/*; do install -D -m 0644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/} || exit 1; done
	install -D -m 0644 packaging/completions/tstunnel.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tstunnel
	install -D -m 0644 packaging/completions/_tstunnel $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tstunnel
	install -D -m 0644 packaging/completions/tstunnel.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tstunnel.fish
	install -d $(DESTDIR)$(PREFIX)/lib/tstunnel/mutagen
	ln -sfn ../../../bin/tstunnel $(DESTDIR)$(PREFIX)/lib/tstunnel/mutagen/ssh
	ln -sfn ../../../bin/tstunnel $(DESTDIR)$(PREFIX)/lib/tstunnel/mutagen/scp
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/systemd/user
	for unit in system/tstunnel.service system/tstunnel.socket user/tstunnel-user.service user/tstunnel-mutagen.service; do \
		sed 's|/usr/local|$(PREFIX)|' packaging/$${unit#*/} >$(DESTDIR)$(PREFIX)/lib/systemd/$$unit; \
	done

clean:
	$(CARGO) clean
