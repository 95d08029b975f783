// The token of this server, for this tab alone: it stands in no address and in no cookie.
const KEY = "raysere-token"

export const token = () => sessionStorage.getItem(KEY) || ""

export function ask(path, { headers, ...rest } = {}) {
  return fetch(path, { ...rest, headers: { ...headers, ...(token() && { Authorization: "Bearer " + token() }) } })
}

// What an error of the API says, as sentences.
export function sentences({ error }) {
  return [error.message, error.remedy].filter(Boolean).map(text => text.replace(/[.:]?$/, ".")).join(" ")
}

// Lets Enter and the button of the form keep what is typed and call `entered`, which tries it.
export function signIn(form, entered) {
  form.onsubmit = event => {
    event.preventDefault()
    sessionStorage.setItem(KEY, form.querySelector("input").value.trim())
    entered()
  }
}

// Shows the form after a 401; returns what was wrong: nothing where no token was sent.
export function askForToken(form) {
  const fault = token() && "This is not the token of this server."
  sessionStorage.removeItem(KEY)
  form.hidden = false
  form.querySelector("input").select()
  return fault
}
