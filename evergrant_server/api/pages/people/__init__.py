"""The pages of people who administer: the login at the tenant's issuer and back, and the session."""
