"""What a network costs: exactly for one network, as a differentiable expectation for a distribution."""
