"""From noise to images, step by step: timetables, noise, corrections, solvers. Pure: torch and numpy, no UNet."""
