"""Compare plans: tables, figures and reports of what planners decide and what cost models say of it."""
