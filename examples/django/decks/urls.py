from django.contrib.auth.views import LoginView
from django.urls import path

from . import views

urlpatterns = [
    path("", views.decks, name="decks"),
    path("decks/<int:pk>/", views.deck, name="deck"),
    path("slides/<int:pk>/", views.edit, name="edit"),
    path("login/", LoginView.as_view(template_name="decks/login.html"), name="login"),
]
