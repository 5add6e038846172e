"""Facts about graphs and programs that several passes use."""
