"""What a person takes away: the choice between networks, bundles of files, tables and pictures."""
