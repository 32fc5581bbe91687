"""One small web app three times, in FastAPI, Flask and Django: its users connect their accounts.

Owns the use of `evergrant.web` in each framework; of the connect element in React (`Connections.tsx`), and a
backend of it in TypeScript (`backend.ts`). The login is a stand-in: `POST /login` believes a name.
Each app reads EVERGRANT_URL and EVERGRANT_API_KEY, and lists `…/evergrant/connected` in its `return_to`.
"""
