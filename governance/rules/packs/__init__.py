"""The rule packs that ship, one TOML file each. Data only; `cohortium.governance.rules.pack` reads them."""
