"""The pages about jobs, onto an application that has the sign-in pages already."""

from fastapi import FastAPI

from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.store.engine import Store
from theon.web import jobs_list, jobs_one, jobs_overviews, jobs_run
from theon.web.jobs_base import JobsSite


def add_jobs_pages(app: FastAPI, store: Store, kinds: Kinds, scheduler: Scheduler) -> None:
    """Put the pages onto `app`; before `add_pages`, whose pages take what is left."""
    app.state.jobs_site = JobsSite(store, kinds, scheduler)
    app.include_router(jobs_list.router)
    app.include_router(jobs_one.router)
    app.include_router(jobs_run.router)
    app.include_router(jobs_overviews.router)
