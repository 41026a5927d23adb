"""What an inference takes and draws: latency, power, governors and a battery, modelled or measured; the search asks it."""
