"""A web app without jobs: how the server itself ends."""

from starlette.applications import Starlette

app = Starlette()
