"""What is asked, keyed and kept: settings, stages, store, records, progress."""
