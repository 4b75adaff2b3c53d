"""The fit, written once over an engine: order of the phases, choices between samplers, modes, measurement."""
