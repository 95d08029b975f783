import { ask, askForToken, sentences, signIn, token } from "./session.js"

const $ = id => document.getElementById(id)

async function open() {
  const fail = text => { $("fault").textContent = text }
  fail("")
  try {
    const response = await ask("openapi.json")
    if (response.status === 401) return fail(askForToken($("token")))
    const body = await response.json()
    if (response.status !== 200) return fail(sentences(body))
    $("token").hidden = true
    const swagger = SwaggerUIBundle({
      spec: body,
      dom_id: "#swagger-ui",
      deepLinking: true,
      validatorUrl: null,
      onComplete: () => token() && swagger.preauthorizeApiKey("token", token()),
    })
  } catch (error) { fail("The server cannot be reached: " + error.message) }
}

signIn($("token"), open)
open()
