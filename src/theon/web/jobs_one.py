"""The page of one job."""

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
