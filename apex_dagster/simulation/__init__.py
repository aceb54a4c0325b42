"""The saga code under a virtual clock, model stores and injected faults: `apex simulate`."""
