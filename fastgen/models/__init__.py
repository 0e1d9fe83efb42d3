"""Networks as denoisers of a process: who speaks in a role, and how it is told, shared, tapped and quantised."""
