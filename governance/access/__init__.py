"""Who may do what at a node or a coordinator: accounts with roles, and a log of every privileged act.

May import `governance.log`, `privacy` and `study`.
Must never happen here: an act that is allowed and not logged, an identity from the environment, a customer's id.
"""

from cohortium.governance.access.accounts import TABLES, Account, AccountStore, Person, os_login
from cohortium.governance.access.authority import ACCESS_FILE, authorise, create_accounts, open_accounts
from cohortium.governance.access.passwords import FAILURES, LOCKED_FOR
from cohortium.governance.access.roles import FIRST_ROLES, PERMITTED, Act, Role

__all__ = [
    "ACCESS_FILE",
    "FAILURES",
    "FIRST_ROLES",
    "LOCKED_FOR",
    "PERMITTED",
    "TABLES",
    "Account",
    "AccountStore",
    "Act",
    "Person",
    "Role",
    "authorise",
    "create_accounts",
    "open_accounts",
    "os_login",
]
