"""Where a budget of network calls is spent: refresh steps, and corrected steps with them, for a stated objective."""
