"""A saga engine over a durable ledger. It knows neither documents' content nor stores."""
