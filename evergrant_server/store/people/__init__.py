"""People who administer: where they log in, logins under way, sessions. Read with authenticators."""
