"""Commands on other hosts, over ssh: there the same program runs, with --json."""
