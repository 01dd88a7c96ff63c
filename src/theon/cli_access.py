"""`theon account …` and `theon key …`: who may sign in, and what programs may do."""

from typing import Annotated

import typer

from theon import cli_common

account_app = typer.Typer(
    help="Accounts of people who sign in.", no_args_is_help=True, rich_markup_mode=None
)
key_app = typer.Typer(
    help="API keys of other programs.", no_args_is_help=True, rich_markup_mode=None
)

RoleName = Annotated[
    str,
    typer.Option(
        help="system_administrator, campus_administrator, teacher, learner or service.",
    ),
]
CampusOf = Annotated[str, typer.Option(help="Slug of the campus; district for the whole.")]
AccountName = Annotated[str, typer.Argument(help="What its owner types to sign in.")]
Password = Annotated[
    str,
    typer.Option(
        prompt=True, hide_input=True, confirmation_prompt=True, help="12 characters or more; asked."
    ),
]


@account_app.command("add")
def account_add(name: AccountName, role: RoleName, campus: CampusOf, password: Password) -> None:
    """Add an account; the password is asked for.

    Example: theon account add ann@lincoln.example --role campus_administrator --campus lincoln
    """
    from theon.access.accounts import add_account  # noqa: PLC0415
    from theon.access.roles import read_role  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        account = add_account(
            theon.store, name=name, password=password, role=read_role(role), campus=campus
        )
    typer.echo(f"{account.name}\t{account.role}\t{account.campus}")


@account_app.command("list")
def account_list() -> None:
    """List the accounts: name, role, campus, state; tab-separated.

    Example: theon account list
    """
    from theon.access.accounts import list_accounts  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        accounts = list_accounts(theon.store)
    for found in accounts:
        state = "shut" if found.disabled_at else "open"
        typer.echo(f"{found.name}\t{found.role}\t{found.campus}\t{state}")
    if not accounts:
        typer.echo("No account yet: `theon serve` prints a link for the first one.", err=True)


@account_app.command("password")
def account_password(name: AccountName, password: Password) -> None:
    """Give an account another password; its sessions end.

    Example: theon account password ann@lincoln.example
    """
    from theon.access.accounts import set_password  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        set_password(theon.store, name, password)
    typer.echo("The password is changed, its sessions have ended.")


@account_app.command("shut")
def account_shut(
    name: AccountName,
    undo: Annotated[bool, typer.Option("--undo", help="Open it again.")] = False,
) -> None:
    """Shut an account at once, or open it again.

    Example: theon account shut ann@lincoln.example
    """
    from theon.access.accounts import set_disabled  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        account = set_disabled(theon.store, name, disabled=not undo)
    typer.echo(f"{account.name}\t{'open' if undo else 'shut'}")


@key_app.command("add")
def key_add(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    role: RoleName = "service",
    campus: CampusOf = "district",
    days: Annotated[int, typer.Option(min=1, help="How long it holds.")] = 365,
) -> None:
    """Make an API key and print it, this once.

    Example: theon key add "timetable sync" --campus lincoln
    """
    from theon.access.keys import make_key  # noqa: PLC0415
    from theon.access.roles import read_role  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        made, key = make_key(theon.store, name=name, role=read_role(role), campus=campus, days=days)
    typer.echo(key)
    typer.echo(
        f"Key {made.id} holds until {made.expires_at:%Y-%m-%d}. It is not shown again; "
        "send it as Authorization: Bearer.",
        err=True,
    )


@key_app.command("list")
def key_list() -> None:
    """List the API keys: id, name, how it begins, role, campus, state; tab-separated.

    Example: theon key list
    """
    from theon.access.keys import list_keys  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        keys = list_keys(theon.store)
    for key in keys:
        state = "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}"
        typer.echo(f"{key.id}\t{key.name}\t{key.prefix}…\t{key.role}\t{key.campus}\t{state}")


@key_app.command("revoke")
def key_revoke(key_id: Annotated[int, typer.Argument(help="Id of the key.")]) -> None:
    """End an API key at once.

    Example: theon key revoke 3
    """
    from theon.access.keys import revoke_key  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        revoke_key(theon.store, key_id)
    typer.echo(f"Key {key_id} has ended.")
