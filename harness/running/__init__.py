"""From an experiment to finished cells: plan, schedule, build, record."""
