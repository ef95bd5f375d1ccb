"""Deep gated networks and the neural path kernel (Lakshminarayanan and Singh, NeurIPS 2020)."""
