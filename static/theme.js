// Before anything is painted: the theme that was chosen, if one was.
const theme = localStorage.getItem("theme");
if (theme !== null) document.documentElement.dataset.theme = theme;
