"""The selector contract, its context, plug-ins and conformance."""
