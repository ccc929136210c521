"""The coordinator's ServerApp."""

from hansa.coordinator.stock_flower import make_stock_server_app

app = make_stock_server_app()
