"""Gives back what it gets."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, _: Context) -> Message:
    """Give back what came."""
    return Message(message.content, reply_to=message)
