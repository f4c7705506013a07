"""`squall product show | verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.stack_commands import enter
from infra.settings import Settings, domain_files, load_domain

if TYPE_CHECKING:
    from infra.objects import ObjectStore

app = typer.Typer(help="Look at a published product.", no_args_is_help=True)
Path = Annotated[
    str, typer.Argument(help="Folder of a product (…/products/<domain>/…/<run>), or a domain: its latest.")
]


def _find(path: str, settings: Settings) -> tuple[ObjectStore, str]:
    """Store and key of a product's folder, given with or without the store's URL, or by a domain's name."""
    from infra.objects import ObjectStore
    from tasks.cycle import product_store
    from tasks.products.publishing import read_latest

    if path in domain_files(settings):
        store = product_store(load_domain(path, settings), settings)
        latest = read_latest(store, path)
        if latest is None:
            raise ValueError(f"expected a product of {path}; it has none yet")
        return store, latest.path
    root, mark, inside = path.rstrip("/").rpartition("products/")
    if not mark:
        raise ValueError(f"expected a product's folder (.../products/<domain>/...) or a domain; got {path!r}")
    url = root.rstrip("/") if root else settings.expand("{store}")
    return ObjectStore(url, settings.storage_options(url)), f"products/{inside}"


@app.command(epilog="Example: `squall product show finland`")
def show(path: Path) -> None:
    """Tell in words where a product comes from."""
    store, key = _find(path, enter())
    from tasks.products.report import show_product

    typer.echo(show_product(store, key))


@app.command(epilog="Example: `squall product verify finland`")
def verify(path: Path) -> None:
    """Hash every object of a product again and compare with its manifest."""
    store, key = _find(path, enter())
    from tasks.products.manifest import verify_product

    damages = verify_product(store, key)
    for damage in damages:
        typer.echo(damage)
    typer.echo(f"{key}: {'damaged' if damages else 'every object is as the manifest says'}")
    raise typer.Exit(1 if damages else 0)
