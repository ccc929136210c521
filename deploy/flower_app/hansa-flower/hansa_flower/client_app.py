"""The participant's ClientApp. Its home is named by the SuperNode's own --node-config, never by what arrives."""

from hansa.participant.stock_node import make_stock_client_app

app = make_stock_client_app()
