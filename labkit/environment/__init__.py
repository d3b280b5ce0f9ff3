"""The machine and the packages that the course runs on: making the environment, checking it."""
