"""What a plan does to a model: type, name, size and reason of every tensor, metadata, pre-flight.

May import everything below; decides nothing twice.
"""
