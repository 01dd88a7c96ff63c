"""The pages about jobs as a whole: queues and workers, schedules, dead letters, health."""

from fastapi import APIRouter

from theon.web import jobs_dead_letters, jobs_health, jobs_queues, jobs_schedules

router = APIRouter(include_in_schema=False)
for _page in (jobs_queues, jobs_schedules, jobs_dead_letters, jobs_health):
    router.include_router(_page.router)
