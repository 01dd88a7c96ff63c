"""The page of all jobs: search, filters, a live table, actions for many, a manual run."""

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
